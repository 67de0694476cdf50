@image empty-qcow2 256k
@with -f qcow2 -t writeback
@leaks
write -P 5 0 64k
read -P 0 0 64k
