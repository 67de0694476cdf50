@with -f raw -t writeback
read 0 512
write 0 512
flush
read 0 512
read 0 512
write 0 512
read 0 512
