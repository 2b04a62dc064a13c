#!/bin/sh
# PID 1 of a test guest. It uses three serial ports:
#   ttyS0  kernel messages and this script's own errors
#   ttyS1  stdin and stdout of the command, and nothing else
#   ttyS2  status for the host: "ready RELEASE", then "exit CODE"
# Modules are loaded only on demand (by modprobe, or by the kernel itself),
# except veth, which every scenario needs.

export PATH=/usr/bin:/usr/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/netns

echo /sbin/modprobe >/proc/sys/kernel/modprobe
modprobe veth
ip link set lo up
hostname guest

. /etc/guest/env
exec 3>/dev/ttyS2 4<>/dev/ttyS1
stty -F /dev/ttyS2 raw -echo 115200
if [ "$INTERACTIVE" = 1 ]; then
	stty -F /dev/ttyS1 sane 115200 rows "$ROWS" cols "$COLUMNS"
else
	stty -F /dev/ttyS1 raw -echo 115200
fi
unset ROWS COLUMNS
echo "ready $(uname -r)" >&3

cd /root
if [ "$INTERACTIVE" = 1 ]; then
	# In a new session the port is the controlling terminal, so that Ctrl-C reaches the command.
	setsid -c sh /etc/guest/command <&4 >&4 2>&4 3>&- 4>&-
else
	sh /etc/guest/command </dev/null >&4 2>&4 3>&- 4>&-
fi
code=$?

# stty waits until all output has been sent.
stty -F /dev/ttyS1 -echo
echo "exit $code" >&3
stty -F /dev/ttyS2 -echo
poweroff -f
