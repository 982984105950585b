#!/usr/bin/env bash
# What the numbered scripts of llama3.1-8b and smollm2 share; their settings.sh source it.

kept() { # FOLDER: whether a step has finished it before; nothing half-written has that name
    [ -e "$1" ] && echo "$1 is there: kept"
}

locked() { # FILE COMMAND [WORD...]: one process at a time; the lock is the command's, too, and lasts as long as it does
    local file=$1 lock=
    shift
    if { : >> "$file"; } 2> /dev/null; then # else nothing is written beside it
        exec {lock}>> "$file"
        flock --nonblock --conflict-exit-code 9 "$lock" || {
            if [ $? = 9 ]; then
                echo "${file%.*} is being made by another process: waiting"
                wait_for_lock "$lock"
            else # as Lustre is often mounted
                echo "no file can be locked in ${file%/*}: do not start a second command beside this one" >&2
            fi
        }
    fi
    "$@"
    [ -z "$lock" ] || exec {lock}>&-
}

wait_for_lock() { # LOCK: a trap of the shell runs between two commands only, so that none of them is long
    local status=0
    until flock --wait 2 --conflict-exit-code 9 "$1"; do
        status=$?
        [ "$(type -t while_waiting)" != function ] || while_waiting # of a batch script, which may be told to end
        [ $status = 9 ] || return $status
    done
}

once() { # OUTPUT COMMAND [WORD...]: makes OUTPUT, unless it is there by this command; OUTPUT.made has its words
    if [ -e "$1" ]; then made_or_kept "$@"; else locked "$1.made" made_or_kept "$@"; fi
}

made_or_kept() { # OUTPUT COMMAND [WORD...]
    local output=$1
    shift
    if [ -e "$output" ]; then
        made_by "$output" "$@"
        echo "$output is there: kept"
    else
        words_of "$output" "$@" > "$output.made"
        "$@"
    fi
}

continued() { # FOLDER COMMAND [WORD...]: trains in FOLDER, and continues there if this command has made it
    local folder=$1
    shift
    [ ! -e "$folder" ] || made_by "$folder" "$@"
    [ -e "$folder" ] || words_of "$folder" "$@" > "$folder.made"
    "$@"
}

made_by() { # OUTPUT COMMAND [WORD...]: ends here if OUTPUT was made by other words, as far as OUTPUT.made tells
    local output=$1 words
    words=$(words_of "$@")
    if [ -e "$output.made" ] && ! [ -s "$output.made" ]; then # emptied by the user: it is right as it is
        echo "$words" > "$output.made"
    fi
    ! [ -e "$output.made" ] || [ "$(cat "$output.made")" = "$words" ] || {
        echo "$0: $output is there, but the settings, or what it is made of, have changed since:"
        echo "  was: $(cat "$output.made")"
        echo "  now: $words"
        echo "Set them back, or remove $output, with what was made of it, to make it again. If it is right as it is,"
        echo "empty $output.made: what stands under 'now' is written there."
        exit 1
    } >&2
}

words_of() { # OUTPUT COMMAND [WORD...]: what OUTPUT.made has of them
    local output=$1 word previous=
    shift
    for word; do
        case "$previous $word" in # how many workers or GPUs share the work changes nothing
            *" --workers" | "--workers "* | *" --nproc-per-node" | "--nproc-per-node "*) ;;
            *" --context-parallel-size" | "--context-parallel-size "* | *" --ranks" | "--ranks "*) ;;
            *) recorded "$output" "$word" ;;
        esac
        previous=$word
    done
    echo
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
        held_by "$path"
        path=${path%/*}
    done
}

held_by() { # PATH: what tells that an input is not what it was, though the same words made it
    local file
    if [ -f "$1" ]; then
        echo -n "($(stat --dereference --format %s "$1") bytes) "
    else
        for file in "$1"/{corpus,manifest,chat_manifest}.json; do # with counts and versions
            [ ! -f "$file" ] || echo -n "(holds $(cksum < "$file" | cut -d ' ' -f 1)) "
        done
    fi
}

report_on() { # RESULTS PAGE: of the results that are there now; the old page stays where they cannot be read
    # one after the other: a step that runs on several nodes ends on all at once
    locked "$2.lock" new_report "$@"
}

new_report() { # RESULTS PAGE
    rm -rf "$2.new"
    ultralong evaluate report "$1" --output "$2.new"
    rm -rf "$2"
    mv "$2.new" "$2"
}

whole_number() { # SETTING EXAMPLE [WHAT]: bad input unless it is one, of tokens, or of WHAT (empty: just a number)
    [[ ${!1} =~ ^[1-9][0-9]{0,11}$ ]] || {
        echo "$0: $1 must be a whole number${3- of tokens}, such as $2, not '${!1}'" >&2
        exit 2
    }
}

# shellcheck disable=SC2034 # settings.sh uses them
DEPTH='100|[0-9]{1,2}([.][0-9]+)?' LENGTH='[1-9][0-9.,]*[KMGkmg]?' TASK='[a-z0-9_]+' # of `different`

different() { # SETTING FORM EXAMPLE [WHAT]: bad input unless it is one or more words of this form, each once
    local - word seen=' '
    set -f # a word may be a pattern of files
    for word in ${!1}; do
        [[ $word =~ ^($2)$ && $seen != *" $word "* ]] || { seen=' ' && break; }
        seen+="$word "
    done
    [ "$seen" != ' ' ] || {
        echo "$0: $1 must be different values${4+ ($4)} with spaces between them, such as '$3', not '${!1}'" >&2
        exit 2
    }
}

lengths() { # LENGTH...: those from 1 to SEQ_LENGTH, each once
    local length found=()
    for length; do
        [ "$length" -lt 1 ] || [ "$length" -gt "$SEQ_LENGTH" ] || [[ " ${found[*]} " == *" $length "* ]] || found+=("$length")
    done
    echo "${found[*]}"
}
