#!/usr/bin/env bash
# The measurement in docs/TRAINING.md: a few clips of new classes, from scratch and from a model of other classes.
#
#     . .venv/bin/activate && bash docs/finetuning.sh        # ten minutes; writes finetuning/
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1
data=finetuning/data
[ -d "$data/somethingv1" ] || python tools/make_motion_dataset.py "$data"

# Make a data set from some of the demo's classes. Arguments: name, largest number of training clips, labels.
subset() {
    local home="$data/$1" clips="$2"
    shift 2
    mkdir -p "$home"
    ln -sfn ../somethingv1/20bn-something-something-v1 "$home/frames"
    for label in "$@"; do sed -n "$((label + 1))p" "$data/somethingv1/category.txt"; done >"$home/category.txt"
    for list in train_videofolder.txt val_videofolder.txt; do
        awk -v labels="$*" 'BEGIN { split(labels, old, " "); for (i in old) new[old[i]] = i - 1 }
            $3 in new { print $1, $2, new[$3] }' "$data/somethingv1/$list" >"$home/$list"
    done
    head -n "$clips" "$home/train_videofolder.txt" >"$home/few" && mv "$home/few" "$home/train_videofolder.txt"
}
subset moves 1000 1 3 4 5    # up, down, left to right, right to left
subset sizes 48 0 2          # nearer, farther

train() {
    python main.py --root_path "$data" --checkpoint_dir finetuning/runs --overwrite --arch resnet14 \
        --input_size 48 --workers 0 -b 6 --lr_schedule cosine "$@" | grep -E "^Testing Results|^best"
}
start=finetuning/runs/checkpoint/GST_moves_resnet14_alpha4_beta2_segment8_start_best.pth.tar
train --dataset moves --store_name start --epochs 6 --lr 0.006
for seed in 0 1 2; do
    few=(--dataset sizes --epochs 8 --seed "$seed")
    echo "seed $seed, from scratch" && train "${few[@]}" --store_name "scratch$seed" --lr 0.006
    echo "seed $seed, fine-tuned" && train "${few[@]}" --store_name "tuned$seed" --lr 0.006 --pretrained "$start"
    echo "seed $seed, fine-tuned, batch norm frozen" && train "${few[@]}" --store_name "frozen$seed" --lr 0.002 \
        --pretrained "$start" --freeze_bn --lr_mult_new 5
done
