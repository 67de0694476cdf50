@image qcow2 256k
@with -f qcow2 -t writeback
read 0 64k
read 2k 512
