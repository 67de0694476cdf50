write 100 100
read 0 512
read 700 1
write 512 512
