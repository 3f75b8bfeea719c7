#!/usr/bin/env bash
# Run the test suite on other versions of the stack: each leg is a constraint file beside this script.
#
#   legs/run.sh                           every leg that is written for the Python in $PYTHON (default python3.11)
#   legs/run.sh NAME [PYTHON [TESTS...]]  one leg, with another interpreter, on chosen tests (default tests/)
#
# A leg lives in .venv-leg-NAME and is kept; its torch comes first and alone. On Linux, PIP_EXTRA_INDEX_URL or
# PIP_FIND_LINKS may point at CPU builds of torch: PyPI's are several gigabytes of CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 PIP_DISABLE_PIP_VERSION_CHECK=1

run_leg() {
    local name=$1 python=$2 constraints=legs/$1.txt venv=.venv-leg-$1
    shift 2
    if [ ! -f "$constraints" ]; then
        echo "no leg '$name'; there are: $(basename -s .txt legs/*.txt | xargs)" >&2
        exit 2
    fi
    [ -d "$venv" ] || "$python" -m venv "$venv"
    "$venv/bin/pip" install -q torch==2.13.0
    "$venv/bin/pip" install -q -c "$constraints" -e '.[dev]'
    "$venv/bin/python" -c 'import importlib.util as u; raise SystemExit(u.find_spec("recbole") is None)' ||
        "$venv/bin/pip" install -q --no-deps recbole==1.2.1
    echo "leg $name: $("$venv/bin/python" -c 'import sys, numpy, pandas, scipy, torch
print("python", sys.version.split()[0], *(f"{m.__name__} {m.__version__}" for m in (numpy, pandas, scipy, torch)))')"
    "$venv/bin/python" -m pytest -m "not slow" -p no:cacheprovider "$@"
}

if [ $# -gt 0 ]; then
    name=$1 python=${2:-${PYTHON:-python3.11}}
    shift $(($# < 2 ? $# : 2))
    [ $# -gt 0 ] || set -- tests/
    run_leg "$name" "$python" "$@"
    exit
fi

python=${PYTHON:-python3.11}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
failed=
for file in legs/*.txt; do
    name=$(basename "$file" .txt)
    if [ "$(head -n 1 "$file")" = "# python $version" ]; then
        # In a process of its own, so that one leg's failure neither ends the others nor gets lost.
        bash legs/run.sh "$name" "$python" || failed="$failed $name"
    else
        echo "leg $name: left out, it is written for another $(head -n 1 "$file" | cut -c3-)"
    fi
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
