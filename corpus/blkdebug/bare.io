@with -t writeback
@options driver=blkdebug,config=rules,image.filename=image
read 0 512
flush
write 0 512
write 0 512
flush
read 0 512
