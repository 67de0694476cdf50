@with -f raw
break write_aio A
break write_aio B
aio_write -P 9 0 512
wait_break A
wait_break B
resume A
read -P 1 0 512
resume B
aio_flush
read -P 9 0 512
