#!/bin/sh
# Stands for ssh in ranks.py: enter_namespace.sh [-x] ADDRESS COMMAND... runs the command in the namespace of an address.
while [ "${1#-}" != "$1" ]; do shift; done
case "$1" in
10.97.0.1) name=slm-np-a ;;
10.97.0.2) name=slm-np-b ;;
esac
shift
exec ip netns exec "$name" unshare --uts sh -c "hostname $name; $*"
