@options driver=blkdebug,image.filename=image,align=4096
break pwritev_rmw_after_tail A
aio_write -P 10 512 512
wait_break A
aio_write -P 11 -q 1k 512
aio_write -P 12 -q 4k 4k
resume A
aio_flush
read -P 1 0 512
read -P 10 512 512
read -P 11 1k 512
read -P 12 4k 4k
