@with -f raw
break write_aio A
aio_write -P 9 0 512
wait_break A
read 4k 512
resume A
aio_flush
