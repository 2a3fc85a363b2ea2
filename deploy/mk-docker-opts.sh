#!/bin/sh
# Writes dockerd's options, made of flanneld's subnet.env: the same flags and files as the script of this
# name that comes with the original flannel, see `flannelctl mk-docker-opts -h`. flannelctl is looked for
# beside this script, then in PATH.
here=$(dirname -- "$0")
if [ -x "$here/flannelctl" ]; then
	exec "$here/flannelctl" mk-docker-opts "$@"
fi
exec flannelctl mk-docker-opts "$@"
