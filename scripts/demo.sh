#!/usr/bin/env bash
# The demo: the commands a person would type, on a set that it draws itself. About four minutes on two cores, no downloads of weights.
set -euo pipefail
folder=runs/demo
rm -rf "$folder"
mkdir -p "$folder"

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
type_and_run() { printf '$ %s\n' "$*"; "$@"; }

say "clipse 1/3: a Flickr8k folder of drawn scenes, five captions each"
type_and_run clipse data synthetic "$folder/scenes" --train 3000 --val 200 --test 200

say "clipse 2/3: a small CLIP from scratch, about two minutes"
type_and_run clipse train --config scenes data.root="$folder/scenes" runs="$folder/runs" results="$folder/results" name=first

say "clipse 3/3: retrieval on the test split, beside chance and the ceiling that a reader of the attributes reaches"
type_and_run clipse eval "$folder/runs/clipse/first"

say "Pictures"
ls "$folder"/runs/clipse/first/plots/*.png
