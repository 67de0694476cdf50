@with -f raw
aio_read 0 512
aio_flush
aio_write 0 512
aio_flush
