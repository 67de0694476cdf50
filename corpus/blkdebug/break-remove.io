@with -f raw
break write_aio A
remove_break A
write 0 512
remove_break A
break read_aio B
aio_read 0 512
wait_break B
remove_break B
aio_flush
resume B
