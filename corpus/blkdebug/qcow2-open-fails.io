@image qcow2 256k
@with -f qcow2 -t writeback
read 0 4k
