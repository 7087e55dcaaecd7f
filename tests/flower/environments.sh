#!/usr/bin/env bash
# Makes the environments that the tests with Flower run in, at the top of the checkout: one a version of Flower, each
# with the SDK and none of the node's libraries.
#
#     tests/flower/environments.sh              # all versions
#     tests/flower/environments.sh 1.41         # one
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -gt 0 ] || set -- 1.30 1.39 1.41
for version in "$@"; do
    wanted=tests/flower/requirements-$version.txt
    environment=.venv-flower-$version
    stamp=$environment/.installed
    [ -f "$wanted" ] || { echo "there is no $wanted" >&2; exit 2; }
    if [ -f "$stamp" ] && cmp --silent "$wanted" "$stamp" && [ ! pyproject.toml -nt "$stamp" ]; then
        continue
    fi
    "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/pip" install --quiet --disable-pip-version-check -r "$wanted"
    "$environment/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
    cp "$wanted" "$stamp"
done
