#!/usr/bin/env bash
# Everything that should be measured on a GPU, in one command of at most 12 minutes, without a network:
#
#   DATA=tiny-imagenet-50.tar.gz WEIGHTS=vgg16-imagenet.pth scripts/gpu_evidence.sh OUT
#
# DATA: a folder of photographs, train/CLASS/* and val/CLASS/*, or a tar file of one. WEIGHTS: what
# scripts/vgg16_imagenet.py writes; half precision (--half, 29 MB) will do.
#
#   births      the birth times of the GPU kernels against the CPU's integers, then their share of the forward pass
#   scoring     images/s of scoring against those of a plain evaluation, VGG16 and ResNet18, on photographs
#   comparison  the reference network, VGG16 at 224×224, fine-tuned on all images, and table 12 of it: the paper's
#               criteria, Taylor and random units at 50 %, again with distillation, at 40 and 60 %, and for two more
#               seeds, as far as the time allows
#
# Each part has a time limit. A part that reaches it is cut off, and what it has measured until then stays in OUT; that is
# no error. The exit status is 1 if a check or a part failed: wrong integers stop everything.
#
# Further variables:
#   LIMIT   seconds for all of it (default 720)
#   RUNS    folder for the networks and results of the comparison; the same one again continues it (default: a new one)
#   PARTS   some of the three parts, in their order
#   COMMIT  the commit, for a copy of the source outside git
#   PYTHON  the interpreter (default python3)
#   TINY=1  all of it on the CPU within a minute, with random images and small networks: a rehearsal
#
# A machine without internet needs the package's dependencies beforehand, for example as wheels:
#   pip download --only-binary=:all: --no-deps -d wheels altair annotated-types attrs cyclopts docstring-parser \
#       docutils iopath==0.1.9 jsonschema jsonschema-specifications narwhals portalocker pydantic pydantic-core \
#       referencing rich-rst rpds-py termcolor typing-inspection yacs && pip wheel --no-deps -w wheels fvcore .
#   pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=$PWD/site     # on that machine
set -uo pipefail
[ $# -eq 1 ] || { sed -n '2,/^set/p' "$0" | sed '$d;s/^# \{0,1\}//' >&2; exit 2; }
root="$(cd "$(dirname "$0")/.." && pwd)"
mkdir -p "$1" && out="$(cd "$1" && pwd)" || exit 2
[ -z "$(ls -A "$out")" ] || { echo "$out is not empty" >&2; exit 2; }
python="${PYTHON:-python3}" tiny="${TINY:-}" parts="${PARTS:-births scoring comparison}"
runs="${RUNS:-$(mktemp -d)}" deadline="${LIMIT:-720}" status=0
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
commit="${COMMIT:-$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)}"
: >"$out/summary.txt"
say() { echo "$*" | tee -a "$out/summary.txt"; }

# part NAME SECONDS COMMAND...: run a command with a time limit and add what it prints to LOG.txt, by default NAME.txt.
# Returns the command's status; one that was cut off counts as 0.
part() {
    local name="$1" limit="$2" left=$((deadline - SECONDS - 15)) began=$SECONDS log="${log:-$1}.txt" code
    shift 2
    [ "$limit" -le "$left" ] || limit=$left
    [ "$limit" -ge 3 ] || { say "$name: left out, no time is left"; return 0; }
    # SIGINT lets Python write what it has; SIGKILL follows if that takes longer than ten seconds.
    timeout --signal=INT --kill-after=10 "$limit" "$@" 2>&1 | tee -a "$out/$log"
    code=${PIPESTATUS[0]}
    case $code in
        0) say "$name: done in $((SECONDS - began)) s" ;;
        124 | 137) say "$name: cut off after $((SECONDS - began)) s; what it measured until then is in $log"; code=0 ;;
        *) say "$name: FAILED with status $code, see $log"; status=1 ;;
    esac
    return "$code"
}

# compare NAME SETTING...: run the recipe's comparison with these settings in the folder RUNS/NAME-1, or continue it.
compare() {
    local name="$1" run="$runs/$1-1" log=comparison setting
    local arguments=(--data "$folder" --device "$device" --output "$runs")
    shift
    for setting in name="$name" model.checkpoint="$WEIGHTS" 'train.only=[]' "${overrides[@]}" "$@"; do
        arguments+=(--set "$setting")
    done
    [ ! -d "$run" ] || arguments+=(--resume "$run")
    part "$name" "$deadline" "$python" -m prune_fe compare "$root/recipes/vgg16-imagenet-pruning.yaml" "${arguments[@]}"
    if compgen -G "$run/cells/*.json" >/dev/null; then
        { echo "## $name" && "$python" "$root/scripts/table12.py" "$run"; } | tee -a "$out/table12.md" || status=1
        finished+=("$name-1")
    fi
}

finish() {
    say "$SECONDS s in all, status $status"
    echo "written to $out:"
    ls -l "$out"
    exit "$status"
}

if [ -n "$tiny" ]; then
    export TRITON_INTERPRET=1
    device=cpu births=(--device cpu --tiny --network tiny --size 5 --batch 1 --repeats 1 --seconds 0.01)
    scoring=(--size 128 --count 4 --batch 2 --passes 1 --threads 1) networks=resnet18
    DATA="$runs/tiny" WEIGHTS="$runs/tiny.pth"
    "$python" "$root/scripts/tiny_evidence.py" "$DATA" "$WEIGHTS" || exit 2
    name=tiny-evidence model=vgg-small overrides=(data.size=16 data.images_per_class=6 data.validation=0.34
        model.name=vgg-small
        'model.arguments={stages: [[4], [6]]}' model.classifier_width=null train.epochs=1 train.batch_size=4
        score.samples=2 'scorers=[random, feature-entropy, nisp]' finetune.epochs=1 finetune.batch_size=4 threads=1)
else
    device=cuda births=(--network vgg16) networks='vgg16 resnet18'
    scoring=(--device cuda --channels-last --count 5000 --batch 256 --threads 16 --passes 3)
    : "${DATA:?a folder of photographs or a tar file of one}" "${WEIGHTS:?the file of scripts/vgg16_imagenet.py}"
    # The whole network is fine-tuned. Batches of 64 give 950 steps; with the 120 steps of the paper's 512 hardly any
    # network recovers.
    name=vgg16-imagenet-gpu model=torchvision-vgg16 overrides=(data.size=224 data.images_per_class=null
        data.memory_gib=16.0 train.epochs=6 train.amp=true score.batch_size=256 finetune.batch_size=64
        finetune.amp=true threads=null)
fi
case "$DATA$WEIGHTS" in *' '*) echo "DATA and WEIGHTS must not contain spaces" >&2; exit 2 ;; esac
[ -e "$DATA" ] && [ -e "$WEIGHTS" ] || { echo "$DATA or $WEIGHTS does not exist" >&2; exit 2; }

# altair is imported by every comparison, and the package's version is recorded: better missed now than in ten minutes.
folder="$("$python" - "$DATA" "$out/summary.txt" <<'EOF'
import json, sys, pathlib, altair, cyclopts, fvcore, numba, torchvision
from importlib import metadata
from prune_fe.data.archive import unpack
from prune_fe.experiment.run_folder import environment
metadata.version("prune-fe")
pathlib.Path(sys.argv[2]).write_text(json.dumps(environment()) + "\n")
print(unpack(pathlib.Path(sys.argv[1])))
EOF
)" || { say "the package or the data cannot be used here, see above"; exit 2; }
say "commit $commit"

for each in $parts; do
    case $each in
        births)
            part births-check 150 "$python" "$root/scripts/bench_gpu.py" --only check "${births[@]}" || finish
            part births-times 90 "$python" "$root/scripts/bench_gpu.py" --only times "${births[@]}"
            ;;
        scoring)
            for network in $networks; do
                part "scoring-$network" 60 "$python" "$root/scripts/bench_scoring.py" --images "$folder/train" \
                    --network "$network" --in-memory --no-peaks "${scoring[@]}"
            done
            ;;
        comparison)
            finished=()
            compare "$name" "compare.ratios=[0.5]" "seeds=[0]"
            network="$runs/$name-1/networks/$model/seed-0/trained/model.safetensors"
            if [ -f "$network" ]; then
                # The same network again.
                again=(model.checkpoint="$network" train=null "seeds=[0]")
                compare "$name-distill" "${again[@]}" "compare.ratios=[0.5]" finetune.distill.weight=0.5
                [ -n "$tiny" ] || compare "$name-ratios" "${again[@]}" "compare.ratios=[0.4, 0.6]"
            fi
            [ -n "$tiny" ] || compare "$name-seeds" "compare.ratios=[0.5]" "seeds=[1, 2]"
            # Networks and unfinished training stay in RUNS.
            [ ${#finished[@]} -eq 0 ] || tar -czf "$out/comparison.tar.gz" --exclude='*.safetensors' \
                --exclude=scores.npz --exclude=classes.csv --exclude=unfinished -C "$runs" "${finished[@]}"
            ;;
        *) echo "PARTS: no part $each; there are births, scoring and comparison" >&2; exit 2 ;;
    esac
done
finish
