@with -f raw
truncate 128k
length
write 0 512
write 100k 512
read -P 0 64k 512
truncate 32k
read 40k 512
