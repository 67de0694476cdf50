@with -f raw -t writeback
read 0 512
flush
