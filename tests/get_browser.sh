#!/bin/sh
# What the browser tests need, as far as it can be had: Debian's Chromium, and from npm, into the folder given, the widget
# manager's scripts and axe-core, which looks for what keeps people out. Says what it did not get and never fails: without it
# the tests skip, saying so.
say() { echo "browser tests: $*"; }

for name in chromium chromium-browser google-chrome google-chrome-stable; do
    found=${found:-$(command -v $name)}
done
[ "$(id -u)" = 0 ] && sudo= || sudo="sudo -n"
if [ -z "$found" ]; then
    export DEBIAN_FRONTEND=noninteractive
    if command -v apt-get >/dev/null && $sudo true 2>/dev/null; then
        { $sudo apt-get -qq -o Acquire::Retries=0 update && $sudo apt-get -qq install -y --no-install-recommends chromium; } >/dev/null 2>&1 ||
            say "Chromium could not be installed"
    else
        say "there is no Chromium, and it may not be installed here"
    fi
fi

if ! command -v npm >/dev/null; then
    say "there is no npm, so no scripts of the widget manager"
elif [ ! -f "$1/node_modules/@jupyter-widgets/html-manager/dist/embed-amd.js" ] || [ ! -f "$1/node_modules/axe-core/axe.min.js" ]; then
    mkdir -p "$1" &&
        npm install --prefix "$1" --silent --no-audit --no-fund --ignore-scripts --fetch-retries=1 \
            requirejs@2.3.6 jquery@3.5.1 @jupyter-widgets/html-manager@1 axe-core@4 >/dev/null 2>&1 ||
        say "npm could not fetch the widget manager's scripts"
fi
exit 0
