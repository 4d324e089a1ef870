#!/usr/bin/env bash
# Classify texts with curl alone. Usage: examples/classify.sh "a text" "another text"
set -euo pipefail
server=${SERVER:-http://127.0.0.1:8000}
[ $# -gt 0 ] || set -- "Midfielder scores twice as champions win away" "央行维持基准利率不变"

# JSON needs the texts quoted; python3 is on every machine that runs this project.
data=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@")

# `infer` rather than `generate`: it answers 503 under overload, so that --retry tries again. `generate` answers 400.
# classification 1: the best class of each text, as "probability:class id:label".
curl --silent --show-error --fail-with-body --retry 5 --retry-delay 1 "$server/v2/models/text_classifier/infer" -d "{
  \"inputs\":  [{\"name\": \"TEXT\", \"shape\": [$#, 1], \"datatype\": \"BYTES\", \"data\": $data}],
  \"outputs\": [{\"name\": \"PROBABILITIES\", \"parameters\": {\"classification\": 1}}]
}"
echo
