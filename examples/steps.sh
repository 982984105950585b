#!/usr/bin/env bash
# What the numbered scripts of llama3.1-8b and smollm2 share; their settings.sh source it.

kept() { # FOLDER: whether a step has finished it before; nothing half-written has that name
    [ -e "$1" ] && echo "$1 is there: kept"
}

whole_number() { # SETTING EXAMPLE: bad input unless it is one, of tokens
    [[ ${!1} =~ ^[1-9][0-9]*$ ]] || {
        echo "$0: $1 must be a whole number of tokens, such as $2, not '${!1}'" >&2
        exit 2
    }
}

lengths() { # LENGTH...: those up to SEQ_LENGTH, each once
    local length found=()
    for length; do
        [ "$length" -gt "$SEQ_LENGTH" ] || [[ " ${found[*]} " == *" $length "* ]] || found+=("$length")
    done
    echo "${found[*]}"
}
