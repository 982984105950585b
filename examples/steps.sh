#!/usr/bin/env bash
# What the numbered scripts of llama3.1-8b and smollm2 share; their settings.sh source it.

kept() { # FOLDER: whether a step has finished it before; nothing half-written has that name
    [ -e "$1" ] && echo "$1 is there: kept"
}

once() { # OUTPUT COMMAND [WORD...]: makes OUTPUT, unless it is there by this command; OUTPUT.made has its words
    local output=$1 words word previous= lock
    shift
    words=$(for word; do
        # how many workers share the work changes nothing
        [ "$previous" = --workers ] || [ "$word" = --workers ] || recorded "$output" "$word"
        previous=$word
    done)
    if ! [ -e "$output" ]; then # one process at a time; the lock is the command's, too, and lasts as long as it does
        exec {lock}>> "$output.made"
        flock --nonblock "$lock" || {
            echo "$output is being made by another process: waiting"
            flock "$lock"
        }
    fi
    if ! [ -e "$output" ]; then
        echo "$words" > "$output.made"
        "$@"
    elif ! [ -e "$output.made" ] || [ "$(cat "$output.made")" = "$words" ]; then
        echo "$output is there: kept"
    else
        {
            echo "$0: $output is there, but the settings, or what it is made of, have changed since:"
            echo "  was: $(cat "$output.made")"
            echo "  now: $words"
            echo "Set them back, or remove $output, with what was made of it, to make it again. If it is right as it is,"
            echo "remove $output.made alone."
        } >&2
        exit 1
    fi
    [ -z "${lock:-}" ] || exec {lock}>&-
}

recorded() { # OUTPUT WORD: as OUTPUT.made has it: folders may move, and what an input was made by counts
    local path=$2 name='' folder shown
    [[ $path != *="$WORK"/* ]] || name=${path%%="$WORK"/*}= # of --source NAME=FILE
    path=${path#"$name"} shown=$path
    for folder in CACHE WORK here; do # at the beginning alone: WORK=a would be in every word
        [ -z "${!folder:-}" ] || [ "${path#"${!folder}"/}" = "$path" ] || {
            shown=${folder/here/EXAMPLE}/${path#"${!folder}"/}
            break
        }
    done
    printf '%q ' "$name$shown"
    while [ "$path" != "$1" ] && [ "${path#"$WORK"/}" != "$path" ]; do
        [ ! -f "$path.made" ] || echo -n "(made by $(cksum < "$path.made" | cut -d ' ' -f 1)) "
        path=${path%/*}
    done
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
