#!/usr/bin/env bash
# Makes this machine ready to build, test and demonstrate vmferry: Node packages, QEMU, a Temporal server, the test guest,
# and the compiled program. Installs only what is missing and says so on stderr; run again, it only looks.
#
#   scripts/setup.sh [--no-build] [--print-temporal]
#     --no-build        leave dist/ alone
#     --print-temporal  print the Temporal server's path on stdout, and nothing else
#   VMFERRY_TEMPORAL    the Temporal CLI to use instead of one that is found or installed
#   VMFERRY_CHROMIUM    a Chromium or Chrome for the tests that look at pages, instead of the package chromium
#   VMFERRY_CACHE       where the server and the guest are kept (default ~/.cache/vmferry)
set -euo pipefail

readonly TEMPORAL_VERSION=v1.5.1 # the newest that `go install` accepts: later ones have `replace` in their go.mod
readonly TEMPORAL_OLDEST=1.4.0   # the first with a server that has update-with-start (1.28)
readonly DOWNLOAD_SECONDS=60     # a closed network often swallows packets instead of refusing them

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${VMFERRY_CACHE:-$HOME/.cache/vmferry}
build=yes print_temporal=no
exec 3>&1 1>&2 # stdout is for --print-temporal alone

say() { echo "setup: $*"; }
fail() { say "failed: $*"; exit 1; }

for option; do
  case $option in
    --no-build) build=no ;;
    --print-temporal) print_temporal=yes ;;
    *) fail "unknown option $option; known are --no-build and --print-temporal" ;;
  esac
done

require_node() {
  local version
  version=$(node --version 2>/dev/null) || fail "Node.js is missing; install version 20 or newer from https://nodejs.org"
  [[ ${version#v} =~ ^([0-9]+) && ${BASH_REMATCH[1]} -ge 20 ]] ||
    fail "Node.js $version is too old; install version 20 or newer from https://nodejs.org"
}

install_npm_packages() {
  local installed=node_modules/.package-lock.json
  [[ -e $installed && ! package-lock.json -nt $installed ]] && return
  say "installing npm packages"
  # Not `npm ci`: a registry that lacks another platform's optional packages makes it refuse the lock ("Missing: @swc/core-darwin-arm64@").
  # `npm install` keeps to the lock just as well, and --no-save leaves it as it is.
  npm install --no-save --no-audit --no-fund --loglevel=error || fail "npm install; run it in $root to see why"
  touch "$installed"
}

as_root() {
  if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

update_apt_index() {
  [[ -z ${apt_updated:-} ]] || return 0
  as_root apt-get -q update || fail "apt-get update; check the network and /etc/apt"
  apt_updated=yes
}

install_apt_packages() {
  local missing=() package installed
  # One query for all; a package that dpkg has never heard of is simply not in the answer.
  installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true)
  for package; do
    grep -qx "installed $package" <<<"$installed" || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  ((EUID == 0)) || command -v sudo >/dev/null || fail "not root and no sudo; as root run: apt-get install ${missing[*]}"
  say "installing apt packages: ${missing[*]}"
  update_apt_index
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}" ||
    fail "apt-get install ${missing[*]}"
}

# Sets $temporal. The order: what the user names, what the machine has, what we cached, and only then the network.
find_temporal() {
  local cached=$cache/temporal-$TEMPORAL_VERSION/temporal
  if [[ -n ${VMFERRY_TEMPORAL:-} ]]; then
    [[ -x $VMFERRY_TEMPORAL ]] || fail "VMFERRY_TEMPORAL=$VMFERRY_TEMPORAL is not an executable; correct it or unset it"
    temporal=$VMFERRY_TEMPORAL
  elif temporal=$(command -v temporal) && is_recent_temporal "$temporal"; then
    :
  else
    temporal=$cached
    [[ -x $cached ]] || download_temporal "$cached" || compile_temporal "$cached"
    [[ -x $cached ]] || fail "the Temporal server did not get to $cached; is the disk full?"
  fi
}

is_recent_temporal() {
  local version
  version=$("$1" --version 2>/dev/null) && version=${version#temporal version } && version=${version%% *}
  printf '%s\n' "$TEMPORAL_OLDEST" "$version" | sort -VC && return
  say "$1 is version ${version:-unknown}, older than $TEMPORAL_OLDEST: not used"
  return 1
}

# A whole folder appears by one rename, so that a killed set-up leaves no half of a server behind.
publish() { # <executable> <destination>
  local folder=${2%/*}
  local staged
  staged=$(mktemp -d "$folder.XXXXXX")
  chmod 755 "$staged" "$1"
  mv "$1" "$staged/temporal"
  rm -rf "$folder"
  mv -T "$staged" "$folder"
}

download_temporal() {
  say "downloading the Temporal server through the SDK (at most $DOWNLOAD_SECONDS s)"
  local folder program
  folder=$(mktemp -d "$cache/download.XXXXXX")
  # shellcheck disable=SC2016 # the dollars are JavaScript's
  # createLocal also starts the server once: what is kept is known to run here.
  if timeout "$DOWNLOAD_SECONDS" node -e '
      const [downloadDir, version] = process.argv.slice(1);
      require("@temporalio/testing").TestWorkflowEnvironment
        .createLocal({ server: { executable: { type: "cached-download", downloadDir, version } } })
        .then((environment) => environment.teardown())
        .catch((error) => { console.error(`setup: ${error.message.split("\n")[0]}`); process.exit(1); });
    ' "$folder" "$TEMPORAL_VERSION" && program=$(find "$folder" -type f -name 'temporal*' -size +10M -print -quit) && [[ -n $program ]]; then
    publish "$program" "$1"
    rm -rf "$folder"
    return
  fi
  rm -rf "$folder"
  say "the download did not work"
  return 1
}

compile_temporal() {
  local advice="put Temporal's CLI (>= $TEMPORAL_OLDEST, https://github.com/temporalio/cli/releases) on PATH or in VMFERRY_TEMPORAL, or install Go >= 1.25 (https://go.dev/dl), then run setup again"
  local go version folder began=$SECONDS
  go=$(command -v go || ls /usr/local/go/bin/go 2>/dev/null) || fail "no Temporal server, and no Go to build one: $advice"
  version=$("$go" env GOVERSION) # empty before Go 1.16
  version=${version#go}
  # From 1.21 on, Go fetches the toolchain that a module asks for; before, it fails late and obscurely.
  printf '%s\n' 1.21 "${version:-0}" | sort -VC || fail "no Temporal server, and Go ${version:-here} is too old to build one: $advice"
  local toolchain=auto
  printf '%s\n' 1.25 "$version" | sort -VC && toolchain=local
  say "building the Temporal server $TEMPORAL_VERSION with Go $version; this takes 2-5 minutes, once"
  folder=$(mktemp -d "$cache/build.XXXXXX")
  GOTOOLCHAIN=$toolchain GOBIN=$folder GOFLAGS='' CGO_ENABLED=0 "$go" install "github.com/temporalio/cli/cmd/temporal@$TEMPORAL_VERSION" 2>&1 |
    { grep -v '^go: downloading' || true; } ||
    { rm -rf "$folder"; fail "go install of the Temporal server (see above): $advice"; }
  publish "$folder/temporal" "$1"
  rm -rf "$folder"
  say "built the Temporal server in $((SECONDS - began)) s"
}

build_guest() {
  local key folder
  # The same key as demo/guest/artifacts.ts: an edited guest is a new guest, and old ones stay usable.
  key=$(cat demo/guest/init.c demo/guest/build.sh | sha256sum | cut -c1-12)
  folder=$cache/guest-$key
  [[ -e $folder/vmlinuz && -e $folder/initramfs.img ]] && return
  say "building the test guest"
  demo/guest/build.sh "$folder" && return
  # Images often come without an index, or with one that names kernels which are gone.
  say "trying again with a fresh apt index"
  update_apt_index
  demo/guest/build.sh "$folder" || fail "demo/guest/build.sh $folder (see above)"
}

compile() {
  # Our own stamp: tsc writes .tsbuildinfo even when it found errors.
  local stamp=dist/.built
  local sources=(tsconfig.json tsconfig.build.json package.json) folder
  for folder in workflows activities workers qmp hypervisor client demo bench; do
    [[ -d $folder ]] && sources+=("$folder")
  done
  if [[ -e $stamp && -z $(find "${sources[@]}" \( -name '*.ts' -o -name '*.json' \) -newer "$stamp" -print -quit) ]]; then return; fi
  say "compiling"
  local began
  began=$(mktemp) # a source that is saved while tsc runs must count as newer
  npm run --silent build || { rm -f "$began"; fail "npm run build (see above)"; }
  touch -r "$began" "$stamp"
  rm -f "$began"
}

cd "$root"
mkdir -p "$cache" || fail "cannot create $cache; set VMFERRY_CACHE to a folder that can be written"
exec 9>"$cache/.setup.lock"
flock -n 9 || { say "waiting for another set-up to end"; flock 9; }
# What a killed set-up left: with the lock held, nobody works in these. Only our own names, as VMFERRY_CACHE may be any folder.
rm -rf "$cache"/{download,build,"temporal-$TEMPORAL_VERSION",guest-????????????}.??????

require_node
install_npm_packages
install_apt_packages qemu-system-x86 qemu-utils ovmf iproute2 gcc libc6-dev xz-utils zstd
# Tests look at pages as a person does. Ubuntu's package only fetches a snap.
[[ -n ${VMFERRY_CHROMIUM:-} ]] || command -v chromium >/dev/null || install_apt_packages chromium
find_temporal
build_guest
if [[ $build == yes ]]; then compile; fi
if [[ $print_temporal == yes ]]; then echo "$temporal" >&3; fi
