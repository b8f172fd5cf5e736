#!/usr/bin/env bash
# Creates what the service needs of Pub/Sub, or brings it in line: the topic and its schema, the push subscription, and
# dead-lettering as the last resort. Running it again changes nothing. Why each setting is what it is: docs/operations.md,
# "The topic's schema" and "Dead letters"; the rest stands beside the setting.
set -euo pipefail

usage() {
    cat <<'END'
usage: ENDPOINT=https://... deploy/pubsub.sh PROJECT

Creates the topic, its schema, the push subscription and the dead-letter topic in PROJECT, or brings them in line.
It prints each command before it runs it. Settings, as environment variables:

  ENDPOINT                 the worker's address; required
  TOPIC                    users
  SCHEMA                   user-created; set but empty: a topic without a schema
  SUBSCRIPTION             users-worker
  DEAD_LETTERS             users-dead-letters: the dead-letter topic, and the subscription that keeps its messages
  ACK_DEADLINE_SECONDS     60; the worker's setting of that name must be the same
  MIN_BACKOFF              1s: the pause before a refused message comes again; it grows up to
  MAX_BACKOFF              600s
  MAX_DELIVERY_ATTEMPTS    100, the most that Pub/Sub takes
  RETENTION                7d: how far back a seek can go
  DEAD_LETTER_RETENTION    31d, the most that Pub/Sub takes
  PUSH_SERVICE_ACCOUNT     the account whose token each push carries; empty: no token
  PUSH_AUDIENCE            the token's audience; empty: Pub/Sub's default, which is ENDPOINT
  DRY_RUN                  1: only print the commands that a project with none of this needs

With CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB=http://... it talks to the emulator, and leaves out what that does not have.
END
}

stop() {  # stop MESSAGE: the next step is part of the message
    printf 'pubsub.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

run() {  # run COMMAND...: print it as it could be typed, then run it
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    [[ -n $dry_run ]] || "$@"
}

found=''
exists() {  # exists KIND NAME FIELD: whether it is there; `found` is that field of it. Any error but "not found" ends the script
    [[ -z $dry_run ]] || return 1
    local error
    if found=$(gcloud pubsub "$1" describe "$2" --project="$project" --format="value($3)" 2>"$errors"); then
        return 0
    fi
    error=$(<"$errors")
    [[ $error == *NOT_FOUND* ]] || stop "cannot look at $1 $2: $error"
    return 1
}

subscription() {  # subscription NAME TOPIC FLAG...: create it, or update it
    local name=$1 of=$2
    shift 2
    if ! exists subscriptions "$name" topic; then
        run gcloud pubsub subscriptions create "$name" --project="$project" --topic="$of" --expiration-period=never "$@"
        return
    fi
    # A subscription outlives its topic, and then gets nothing any more, not even from a new topic of that name.
    [[ $found == "projects/$project/topics/$of" ]] ||
        stop "subscription $name belongs to $found: delete it, or choose another name, then run this again"
    [[ -n $emulator ]] || set -- --expiration-period=never "$@"  # the emulator cannot change it
    run gcloud pubsub subscriptions update "$name" --project="$project" "$@"
}

grant() {  # grant KIND NAME ROLE: let Pub/Sub itself do this; a binding that is there already stays as it is
    if [[ -n $emulator ]]; then
        printf '# the emulator has no IAM: %s on %s not granted\n' "$3" "$2"
        return
    fi
    run gcloud pubsub "$1" add-iam-policy-binding "$2" --project="$project" --role="$3" --member="$agent"
}

if [[ ${1-} == --help || ${1-} == -h ]]; then
    usage
    exit 0
fi
if (($# != 1)) || [[ -z $1 || $1 == -* ]]; then
    usage >&2
    exit 2
fi
project=$1
endpoint=${ENDPOINT-}
[[ -n $endpoint ]] || stop "ENDPOINT is missing: set it to the worker's address, https://..." 2
topic=${TOPIC:-users}
schema=${SCHEMA-user-created}
subscription=${SUBSCRIPTION:-users-worker}
dead_letters=${DEAD_LETTERS:-users-dead-letters}
retention=${RETENTION:-7d}
dry_run=${DRY_RUN-}
[[ $dry_run != 0 ]] || dry_run=''
[[ -n $dry_run ]] || command -v gcloud >/dev/null ||
    stop 'gcloud is not installed: see https://cloud.google.com/sdk/docs/install, or only look with DRY_RUN=1'
emulator=''
[[ ${CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB-} != http://* ]] || emulator=1  # the service itself is https only
definition=$(dirname "$0")/schema.avsc
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT

# Pub/Sub forwards a dead letter as its own service agent, which needs to publish there and to acknowledge here.
agent=''
if [[ -z $emulator ]]; then
    number=PROJECT_NUMBER
    [[ -n $dry_run ]] || number=$(gcloud projects describe "$project" --format='value(projectNumber)')
    agent="serviceAccount:service-$number@gcp-sa-pubsub.iam.gserviceaccount.com"
fi

# Schema first: a topic that has it refuses what is malformed from its first message on.
topic_schema=()
if [[ -n $schema ]]; then
    # Every field, a null, and a field of a newer publisher: a service that refuses this must not get this schema. The only field
    # that the schema knows stands last: a reader that stops at it would pass over what comes after.
    good='{"email_address": "five@example.com", "settings": null, "created_at": 0, "newer": {"field": [1]}, "user_id": 5}'
    run gcloud pubsub schemas validate-message --project="$project" --type=avro --definition-file="$definition" \
        --message-encoding=json --message="$good" ||
        stop "the schema refuses a good message, see above: run this with SCHEMA= (empty) until that is understood"
    if ! exists schemas "$schema" definition; then
        run gcloud pubsub schemas create "$schema" --project="$project" --type=avro --definition-file="$definition"
    elif [[ ${found//[[:space:]]/} != "$(tr -d '[:space:]' <"$definition")" ]]; then
        run gcloud pubsub schemas commit "$schema" --project="$project" --type=avro --definition-file="$definition"
    fi
    topic_schema=(--schema="$schema" --message-encoding=json)
fi
if exists topics "$topic" name; then
    [[ -n $schema ]] || topic_schema=(--clear-schema-settings)
    run gcloud pubsub topics update "$topic" --project="$project" --message-retention-duration="$retention" "${topic_schema[@]}"
else
    run gcloud pubsub topics create "$topic" --project="$project" --message-retention-duration="$retention" \
        ${topic_schema[@]+"${topic_schema[@]}"}
fi

# Then where dead letters go, with the subscription that keeps them: a topic without one loses them.
if ! exists topics "$dead_letters" name; then
    run gcloud pubsub topics create "$dead_letters" --project="$project"
fi
subscription "$dead_letters" "$dead_letters" --retain-acked-messages \
    --message-retention-duration="${DEAD_LETTER_RETENTION:-31d}"
grant topics "$dead_letters" roles/pubsub.publisher

# The worker's subscription last: it delivers from this moment on.
push=(--push-endpoint="$endpoint")
[[ -z ${PUSH_SERVICE_ACCOUNT-} ]] || push+=(--push-auth-service-account="$PUSH_SERVICE_ACCOUNT")
[[ -z ${PUSH_AUDIENCE-} ]] || push+=(--push-auth-token-audience="$PUSH_AUDIENCE")
subscription "$subscription" "$topic" "${push[@]}" \
    --ack-deadline="${ACK_DEADLINE_SECONDS:-60}" \
    --min-retry-delay="${MIN_BACKOFF:-1s}" --max-retry-delay="${MAX_BACKOFF:-600s}" \
    --retain-acked-messages --message-retention-duration="$retention" \
    --dead-letter-topic="$dead_letters" --max-delivery-attempts="${MAX_DELIVERY_ATTEMPTS:-100}"
grant subscriptions "$subscription" roles/pubsub.subscriber
