@with -f raw -t writeback
truncate 64k
flush
length
