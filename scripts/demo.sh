#!/usr/bin/env bash
# The demo: the commands a person would type, on pictures that it draws itself and the tiny CLIP that clip_common ships.
# About three minutes on two cores; nothing is downloaded.
set -euo pipefail
folder=runs/demo
rm -rf "$folder"
mkdir -p "$folder"
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
type_and_run() {
    printf '$'
    for word in "$@"; do [[ $word == *" "* ]] && printf ' "%s"' "$word" || printf ' %s' "$word"; done
    printf '\n'
    "$@"
}
where=(runs="$folder/runs" results="$folder/results")

say "clipse 1/5: close-ups of parts, flawless and damaged; the tiny CLIP knows the words, but never saw this damage on these kinds"
type_and_run clipse data synthetic "$folder/parts" --what parts --train 1200 --val 200 --test 200 --size 112

say "clipse 2/5: retrieval as it is, beside chance and the ceiling that a reader of the attributes reaches"
type_and_run clipse eval tiny data.root="$folder/parts" "${where[@]}"

say "clipse 3/5: a minute of fine-tuning with similarity-aware negative weighting (SANW-Bandpass)"
type_and_run clipse train --config tiny data.root="$folder/parts" name=adapted "${where[@]}"

say "clipse 4/5: after, against before, on the test split"
type_and_run clipse eval "$folder/runs/clipse/adapted" --against tiny

say "clipse 5/5: search the pictures in words"
type_and_run clipse search "$folder/runs/clipse/adapted" "a cracked bell" "$folder/parts/Images" --k 12 --html "$folder/search.html"

say "To look at"
ls "$folder"/search.html "$folder"/runs/clipse/adapted/plots/*.png
