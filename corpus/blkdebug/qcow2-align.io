@image qcow2 256k
@with -t writeback
@options driver=qcow2,file.driver=blkdebug,file.align=4096,file.max-transfer=8192,file.image.filename=image
write -P 5 0 64k
write -P 6 66k 512
read -P 6 66k 512
read -P 5 0 64k
write -z 128k 64k
read -P 0 128k 64k
discard 64k 64k
flush
