@with -f raw -t writeback
write 0 512
flush
flush
flush
