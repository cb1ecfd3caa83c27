#!/bin/sh
# Writes deploy/.env for deploy/compose.yaml: the secrets of one installation, made once. Keep it as you keep passwords.
set -eu
file="$(dirname "$0")/.env"
if [ -e "$file" ]; then
  echo "$file is there already." >&2
  exit 1
fi
random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
key() { printf '%s:%s' "$1" "$secret" | sha256sum | cut -d ' ' -f 1; }
secret="$(random)"
umask 077
cat > "$file" <<END
POSTGRES_PASSWORD=$(random)
STEPWAY_S3_SECRET_KEY=$(random)
STEPWAY_SERVICE_SECRET=$secret
STEPWAY_SERVICE_KEY_MODEL=$(key model)
STEPWAY_SERVICE_KEY_CLUSTER=$(key cluster)
STEPWAY_SERVICE_KEY_FLOW=$(key flow)
STEPWAY_SERVICE_KEY_GATEWAY=$(key gateway)
DAPR_API_TOKEN=$(random)
APP_API_TOKEN=$(random)
# Names by which browsers and clients call the front, with commas between them: STEPWAY_HOSTS=stepway.example
# Where the front listens; put TLS before it: STEPWAY_LISTEN=127.0.0.1:8400
END
