# shellcheck shell=bash
# Where the tests find what ci/install put into the cache. Source it after ci/lib.sh.
export HOLM_TEST_BIN=$HOLM_CACHE/host/bin
export HOLM_TEST_CNI=$HOLM_CACHE/host/cni
export HOLM_TEST_IMAGE=$HOLM_CACHE/host/hello.tar
export PATH=$HOLM_TEST_BIN:$PATH
