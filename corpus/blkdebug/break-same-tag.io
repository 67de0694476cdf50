@with -f raw
break write_aio A
aio_write -P 9 0 512
wait_break A
break write_aio A
aio_write -P 8 4k 512
resume A
sleep 100
read -P 8 4k 512
read -P 1 0 512
resume A
sleep 100
resume A
aio_flush
read -P 9 0 512
read -P 8 4k 512
