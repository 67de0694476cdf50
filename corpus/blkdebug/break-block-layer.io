@with -f raw
break pwritev A
aio_write -P 9 0 512
wait_break A
read -P 1 0 512
resume A
aio_flush
break pwritev_done B
aio_write -P 8 4k 512
wait_break B
read -P 8 4k 512
resume B
aio_flush
break pwritev_zero C
aio_write -z 8k 512
wait_break C
read -P 17 8k 512
resume C
aio_flush
read -P 0 8k 512
