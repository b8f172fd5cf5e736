# shellcheck shell=bash disable=SC2034 # set here, used by those who source it
# What deploy.sh and destroy.sh share: the names and sizes, each with its default, and the few functions both use.
# Sourced, never run: it reads PROJECT and REGION from the arguments and sets variables in small letters.

settings_help() {
    cat <<'END'
  SERVICE                  users-worker: the Cloud Run service; its accounts and its job are named after it
  BUCKET                   PROJECT-users: the bucket that holds the data
  PREFIX                   prod: the store's place in it; REPLICA_URL is gs://BUCKET/PREFIX
  REPOSITORY               solowriter: the Artifact Registry repository of the image
  BUILD_BUCKET             PROJECT-users-build: where sources wait for Cloud Build, for a day
  TOPIC, SCHEMA, SUBSCRIPTION, DEAD_LETTERS
                           as for deploy/pubsub.sh: users, user-created, users-worker, users-dead-letters
  SETTINGS                 none: a file with such settings, NAME=value on a line, for one environment; PROJECT and REGION too
  DRY_RUN                  1: only print the commands
END
}

stop() {  # stop MESSAGE [CODE]: the next step is part of the message
    printf '%s: %s\n' "$(basename "$0")" "$1" >&2
    exit "${2:-1}"
}

show() {  # show COMMAND...: print it as it could be typed
    printf '+'
    printf ' %q' "$@"
    printf '\n'
}

run() {  # run COMMAND...: print it, then run it
    show "$@"
    [[ -n $dry_run ]] || "$@"
}

found=''
exists() {  # exists FIELD COMMAND...: whether what COMMAND describes is there; `found` is that field. Other errors end the script
    [[ -z $dry_run ]] || return 1
    local field=$1 error
    shift
    if found=$("$@" --format="value($field)" 2>"$errors"); then
        return 0
    fi
    error=$(<"$errors")
    # Each of Google's interfaces has its own words for it. A denied look has none of them: unseen is not the same as absent.
    [[ $error =~ NOT_FOUND|[Nn]ot\ found|Cannot\ find ]] || stop "cannot look at it with \`$*\`: $error"
    return 1
}

if [[ -n ${SETTINGS-} ]]; then  # a file for each environment; what stands in the environment already wins over it
    [[ -r $SETTINGS ]] || stop "SETTINGS is '$SETTINGS': name a file with lines such as MEMORY=2Gi" 2
    while IFS= read -r line || [[ -n $line ]]; do
        [[ $line =~ ^[[:space:]]*(#.*)?$ ]] && continue
        [[ $line =~ ^([A-Z_]+)=(.*)$ ]] || stop "in $SETTINGS stands '$line': write NAME=value, one on a line" 2
        [[ -n ${!BASH_REMATCH[1]+x} ]] || export "${BASH_REMATCH[1]}=${BASH_REMATCH[2]}"
    done <"$SETTINGS"
    (($# > 0)) || set -- ${PROJECT+"$PROJECT"} ${REGION+"$REGION"}
fi
if [[ ${1-} == --help || ${1-} == -h ]]; then
    usage
    exit 0
fi
if (($# != 2)) || [[ -z $1 || $1 == -* || -z $2 || $2 == -* ]]; then
    usage >&2
    exit 2
fi
project=$1
region=$2
dry_run=${DRY_RUN-}
[[ $dry_run != 0 ]] || dry_run=''

[[ $project =~ ^[a-z][a-z0-9-]*$ && $region =~ ^[a-z][a-z0-9-]*$ ]] ||
    stop "PROJECT is '$project' and REGION is '$region': give the project's id, such as acme-users, and a region, such as europe-west1" 2
service=${SERVICE:-users-worker}
# An account's name has 6 to 30 letters, and the longest suffix below takes 6.
[[ $service =~ ^[a-z][a-z0-9-]{4,22}[a-z0-9]$ ]] ||
    stop "SERVICE is '$service': choose 6 to 24 small letters, digits and hyphens, beginning with a letter" 2
bucket=${BUCKET:-$project-users}
prefix=${PREFIX:-prod}
repository=${REPOSITORY:-solowriter}
build_bucket=${BUILD_BUCKET:-$project-users-build}
topic=${TOPIC:-users}
schema=${SCHEMA-user-created}
subscription=${SUBSCRIPTION:-users-worker}
dead_letters=${DEAD_LETTERS:-users-dead-letters}

runtime=$service@$project.iam.gserviceaccount.com
pusher=$service-push@$project.iam.gserviceaccount.com
builder=$service-build@$project.iam.gserviceaccount.com
scheduler=$service-drill@$project.iam.gserviceaccount.com
job=$service-command
drill_job=$service-drill
hub=$repository-docker-hub
network=${NETWORK-default}
subnet=${SUBNET:-default}
snapshots_role=${service//-/_}_snapshots  # a custom role's name takes no hyphens
# Without it nothing would be found, and all that is to be deleted would seem to be gone.
[[ -n $dry_run ]] || command -v gcloud >/dev/null ||
    stop 'gcloud is not installed: see https://cloud.google.com/sdk/docs/install, or only look with DRY_RUN=1'
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
