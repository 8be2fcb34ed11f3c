# Run in a mount and a process namespace of its own: a Debian system that forgets what is done to it,
# whose root shell then reads commands. $1 is the system, $2 a folder to work in, $3 that of the packages.
set -eu
mount -t tmpfs tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs tmpfs run
mkdir packages
mount --bind "$3" packages
for device in null zero random urandom; do
  [ -e "dev/$device" ] || touch "dev/$device"
  mount --bind "/dev/$device" "dev/$device"
done
exec chroot . /bin/sh
