@with -f raw -t writeback
flush
read 0 512
flush
write 0 512
flush
flush
