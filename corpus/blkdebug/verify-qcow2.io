@image qcow2 256k
@reference
@with -f raw
@name blkverify:reference:image
read 0 256k
write -P 9 1000 70000
read -P 9 1000 70000
read 0 256k
flush
