@with -f raw
@name blkdebug::image
read 0 512
write 0 512
