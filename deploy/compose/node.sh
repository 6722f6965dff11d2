#!/bin/sh
# A node in a container without an init: installs the agent, starts it, and becomes containerd.
set -eu

# cgroup v2: processes may be only in the leaves. runc makes its cgroups beside this one.
cgroups=/sys/fs/cgroup
if [ -f $cgroups/cgroup.controllers ]; then
    mkdir -p $cgroups/node
    while read -r process; do
        echo "$process" >$cgroups/node/cgroup.procs 2>/dev/null || true
    done <$cgroups/cgroup.procs
    for controller in $(cat $cgroups/cgroup.controllers); do
        echo "+$controller" >$cgroups/cgroup.subtree_control || true
    done
fi

starlift agent install --no-services --server "$SERVER"
starlift agent &
exec containerd
