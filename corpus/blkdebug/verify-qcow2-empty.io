@image empty-qcow2 256k
@reference
@options driver=blkverify,raw.filename=reference,test.driver=qcow2,test.file.filename=image
read 0 256k
write -P 9 1000 70000
read 0 256k
