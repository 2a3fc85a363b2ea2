# Makes a machine of a network namespace: processes, mounts, cgroups and the rest of its own, a fresh
# /run, /var/lib and /opt, an /etc that forgets. Arguments: name, the node's directory, the phase.
set -e
name=$1 dir=$2 phase=$3

# A cgroup of its own in every hierarchy, which the next phase takes for the root. Version 2 is one hierarchy,
# and the directories in it are cgroups of others, which come and go.
if [ "$phase" = cgroups ]; then
	hierarchies=/sys/fs/cgroup
	[ -e /sys/fs/cgroup/cgroup.controllers ] || hierarchies=$(echo /sys/fs/cgroup/*)
	for above in $hierarchies; do
		[ -e "$above/cgroup.procs" ] || continue
		mkdir -p "$above/$name"
		# A new cpuset is empty, and nothing can run in it.
		for list in cpuset.cpus cpuset.mems; do
			if [ -e "$above/$list" ] && [ -z "$(cat "$above/$name/$list")" ]; then
				cat "$above/$list" >"$above/$name/$list"
			fi
		done
		echo $$ >"$above/$name/cgroup.procs"
	done
	exec unshare --cgroup --pid --mount --ipc --uts --fork --kill-child=KILL \
		/bin/sh "$0" "$name" "$dir" mounts
fi

mount --make-rprivate /
mount -t proc proc /proc
mount -t sysfs sysfs /sys
if [ "$(cut -d : -f 1 /proc/self/cgroup)" = 0 ]; then
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	mkdir /sys/fs/cgroup/init
	echo 1 >/sys/fs/cgroup/init/cgroup.procs
	sed 's/[a-z]*/+&/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control
else
	mount -t tmpfs tmpfs /sys/fs/cgroup
	while IFS=: read -r number controllers path; do
		case $number:$controllers in
		0:*) mkdir /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified ;;
		*:name=*) mkdir "/sys/fs/cgroup/${controllers#name=}" &&
			mount -t cgroup -o "none,$controllers" cgroup "/sys/fs/cgroup/${controllers#name=}" ;;
		*) mkdir "/sys/fs/cgroup/$controllers" &&
			mount -t cgroup -o "$controllers" cgroup "/sys/fs/cgroup/$controllers" ;;
		esac
	done </proc/self/cgroup
fi

hostname "${name##*-}"
mkdir -p "$dir/machine"
mount -t tmpfs tmpfs "$dir/machine"
cd "$dir/machine"
mkdir run run/flannel lib log etc work opt tmp
mount --bind "$dir/run/flannel" run/flannel
mount -t overlay overlay -o lowerdir=/etc,upperdir=etc,workdir=work /etc
mount --bind lib /var/lib
mount --bind log /var/log
mount --bind opt /opt
mount --bind tmp /tmp
mount --rbind run /run
# Configurations that the machine below us may have, and this one must not.
rm -rf /etc/cni /etc/containerd /etc/docker
# A kubelet sets these as it wants them, and they are the whole machine's: it finds them as it wants them.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
	kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
	value=$(mktemp setting.XXXXXX)
	echo "${setting#*=}" >"$value"
	mount --bind "$value" "/proc/sys/${setting%=*}"
done
cd /
echo ready >/run/ready
# The first process takes in orphans.
while :; do
	sleep 1000 &
	wait
done
