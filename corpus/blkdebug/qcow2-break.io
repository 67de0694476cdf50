@image qcow2 256k
@with -f qcow2 -t writeback
break write_aio A
aio_write -P 9 0 512
wait_break A
read -P 1 0 512
resume A
aio_flush
read -P 9 0 512
