@image qcow2 256k
@with -f qcow2 -t writeback
write -P 5 0 4k
write -P 6 0 4k
read -P 6 0 4k
flush
