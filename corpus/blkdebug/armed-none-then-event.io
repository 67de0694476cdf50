@with -f raw -t writeback
flush
write 0 512
flush
read 0 512
read 0 512
