#!/usr/bin/env bash
# Makes .venv-sdk at the top of the checkout, as a member of a consortium would: `pip install .`, and nothing else.
# Libraries are those that the checkout is tested with; the checkout itself is installed anew each time.
set -euo pipefail
cd "$(dirname "$0")/../.."
environment=.venv-sdk
pip=(env PIP_DISABLE_PIP_VERSION_CHECK=1 "$environment/bin/pip")
[ -x "$environment/bin/pip" ] || "${PYTHON:-python3}" -m venv "$environment"

# A build leaves files behind: it happens in a copy.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do if [ -e "$file" ]; then printf '%s\0' "$file"; fi; done |
    tar --create --null --files-from=- | tar --extract --directory "$copy"
"${pip[@]}" uninstall --quiet --yes quorate 2>/dev/null
"${pip[@]}" install --quiet --constraint requirements.txt "$copy"
