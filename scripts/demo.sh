#!/usr/bin/env bash
# The demo: the main commands of each system, on generated data and with the tiny CLIP that clip_common contains.
# About ten minutes on two cores; nothing is downloaded.
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

say "clipse 1/5: draw people who walk. The tiny CLIP has seen neither people nor words such as \"trousers\""
type_and_run clipse data synthetic "$folder/people" --what people --train 600 --val 100 --test 150 --size 112

say "clipse 2/5: measure retrieval before training, next to chance and to the ceiling of a reader who knows every attribute"
type_and_run clipse eval tiny data.root="$folder/people" "${where[@]}"

say "clipse 3/5: fine-tune for less than a minute each with CLIP's loss and with similarity-aware negative weighting (SANW-Bandpass), and compare them on the test split"
type_and_run clipse compare --config tiny losses='[clip,sanw_bandpass]' seeds='[0]' split=test data.root="$folder/people" name=people "${where[@]}"
people="$folder/runs/compare/people/clipse"

say "clipse 4/5: compare retrieval after and before training"
type_and_run clipse eval "$people/sanw_bandpass-s0" --against tiny

say "clipse 5/5: search the pictures by text"
type_and_run clipse search "$people/sanw_bandpass-s0" "a person in a pink shirt with snow behind" "$folder/people/Images" --k 12 --html "$folder/search.html"

say "aaclip 1/5: draw parts of twelve kinds for training, and of four kinds whose damage neither aaclip nor the tiny CLIP has seen"
type_and_run aaclip data synthetic "$folder/seen" --good 16 --damaged 4
type_and_run aaclip data synthetic "$folder/unseen" --unseen --train 20 --good 12 --damaged 3 --seed 2

say "aaclip 2/5: detect defects on the unseen kinds with plain CLIP and the same prompts"
type_and_run aaclip test tiny "$folder/unseen" --out "$folder/plain"

say "aaclip 3/5: train the text and image adapters on the seen kinds"
type_and_run aaclip train --config tiny data.root="$folder/seen" stages.text.epochs=1 stages.image.epochs=3 stages.image.milestones='[240,320]' name=defects runs="$folder/runs"

say "aaclip 4/5: detect defects on the unseen kinds again, now with the trained adapters"
type_and_run aaclip test "$folder/runs/aaclip/defects" "$folder/unseen"

say "aaclip 5/5: set a threshold from flawless bells, then write verdicts, heatmaps and masks for a folder of bells"
type_and_run aaclip calibrate "$folder/runs/aaclip/defects" "$folder/unseen/bell/train/good" --name bell --target-fpr 0.1
type_and_run aaclip predict "$folder/runs/aaclip/defects" "$folder/unseen/bell/test" --name bell --out "$folder/bells" --html "$folder/bells.html"

say "videoclip 1/4: draw videos of 120 people who walk. Some drag a foot, some hold an arm stiffly; a doctor watched some regions"
type_and_run videoclip data synthetic "$folder/walks" --subjects 120 --clips 2 --size 64

say "videoclip 2/4: train for a minute on some of the people, with the doctor's attention maps for pooling and alignment"
type_and_run videoclip train --config walking data.root="$folder/walks" name=walks runs="$folder/runs"

say "videoclip 3/4: test on people that were not in training, then again without the doctor's maps"
type_and_run videoclip test "$folder/runs/videoclip/walks"
type_and_run videoclip test "$folder/runs/videoclip/walks" data.control=absent

say "videoclip 4/4: show where the doctor looked and where the model looked"
type_and_run videoclip overlay "$folder/runs/videoclip/walks" --count 2

say "edgeglass 1/8: draw scenes, each with five captions and a sound that plays its things one after another"
type_and_run edgeglass data synthetic "$folder/world" --train 1500 --val 200 --test 200
type_and_run edgeglass data synthetic "$folder/collection" --train 0 --val 0 --test 300 --seed 7

say "edgeglass 2/8: align the tiny image, text and audio encoders in one nested space; only small heads train"
type_and_run edgeglass align --config tiny data.root="$folder/world" name=world runs="$folder/runs"

say "edgeglass 3/8: score scenes that were not in training, at every width and for every pair; a ceiling is what a perfect reader reaches"
type_and_run edgeglass eval "$folder/runs/edgeglass/world"

say "edgeglass 4/8: index another collection of images, captions and sounds"
type_and_run edgeglass embed "$folder/runs/edgeglass/world" "$folder/collection" --out "$folder/index"

say "edgeglass 5/8: search it by words at an eighth of the width with a certificate, then by a sound, then by a picture and its sound together"
first=$(basename "$(ls "$folder"/collection/sounds/*.wav | head -1)" .wav)
type_and_run edgeglass search "$folder/index" "a red mug" --modality image --dim 64 --candidates 50 --explain --k 5
type_and_run edgeglass search "$folder/index" "$folder/collection/sounds/$first.wav" --modality image --k 5
type_and_run edgeglass search "$folder/index" "$folder/collection/images/$first.jpg" "$folder/collection/sounds/$first.wav" --k 12 --html "$folder/sounds.html"

say "edgeglass 6/8: draw scenes with questions about them. Their words alone tell nothing about the answers in the test"
type_and_run edgeglass data synthetic "$folder/questions" --what questions --train 800 --per-picture 24 --val 24 --test 48 --seed 3

say "edgeglass 7/8: teach a tiny language model, which knows the words but has seen no picture, to read the image tokens of the aligned encoder"
type_and_run edgeglass vlm --config tiny_vlm align="$folder/runs/edgeglass/world" data.root="$folder/questions" name=seeing runs="$folder/runs"

say "edgeglass 8/8: ask about scenes that were not in training, and about the wrong ones; then three questions about one picture"
type_and_run edgeglass vlm-eval "$folder/runs/edgeglass/seeing" --control swapped --show 3 --html "$folder/answers.html"
type_and_run edgeglass ask "$folder/runs/edgeglass/seeing" "$(ls "$folder"/questions/images/*.jpg | tail -1)" "how many things are there?" "is there anything red?" "what is in the middle?"

say "To look at"
ls "$folder"/search.html "$people"/sanw_bandpass-s0/plots/*.png "$folder"/bells.html "$folder"/bells/00042_overlay.png "$folder"/runs/videoclip/walks/plots/overlays/*.png "$folder"/sounds.html "$folder"/runs/edgeglass/world/plots/*.png "$folder"/answers.html
