@with -f raw -t writeback
write 0 512
read 0 512
flush
read 0 512
