# Where the programs of the test servers are. Sourced by scripts/setup, scripts/servers and scripts/bench.
#
# In: the machine. Out: five functions that print a path, or print nothing and return 1.
# Always: nothing is installed, started or changed here.

# The folder with PostgreSQL's server programs: 15 first, for that is what we measure against, else the newest.
postgres_bin() {
  local folder
  if [ -x /usr/lib/postgresql/15/bin/initdb ]; then
    echo /usr/lib/postgresql/15/bin
    return
  fi
  folder=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -Vr | head -n 1)
  if [ -z "$folder" ] && command -v pg_config >/dev/null; then
    folder=$(pg_config --bindir)
  fi
  [ -n "$folder" ] && [ -x "$folder/initdb" ] && [ -x "$folder/postgres" ] && echo "$folder"
}

# A `java` of version 17 or later.
java_program() {
  local program major
  for program in "${JAVA_HOME:-/nonexistent}/bin/java" "$(command -v java)" /usr/lib/jvm/*/bin/java; do
    [ -x "$program" ] || continue
    major=$("$program" -version 2>&1 | sed -nE '1,3s/.*version "([0-9]+).*/\1/p' | head -n 1)
    if [ "${major:-0}" -ge 17 ]; then
      echo "$program"
      return
    fi
  done
  return 1
}

# Kafka's home: its jars are in `libs`, and the file `complete` says that all of them are.
# The folder's name holds the version of scripts/kafka/pom.xml, so a new version is a new folder.
kafka_home() {
  local here version
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  version=$(sed -nE 's:.*<kafka.version>(.*)</kafka.version>.*:\1:p' "$here/kafka/pom.xml")
  echo "${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/walgate/kafka-$version"
}

# The home of the Python that runs the example consumer: its program is venv/bin/python, and the file `complete` says that
# all it needs is there. The folder's name holds a sum of the requirements, so that others are a new folder.
python_home() {
  local here sum
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  sum=$(cksum <"$here/../examples/consumers/python/requirements.txt")
  echo "${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/walgate/python-${sum%% *}"
}

# A Chromium that runs without a screen: it looks at the report of `walgate bench`.
chromium_program() {
  local name
  for name in chromium-headless-shell chromium chromium-browser google-chrome; do
    if command -v "$name"; then return; fi
  done
  return 1
}
