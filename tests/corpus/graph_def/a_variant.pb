

xPlaceholder*
dtype0
0
wConst*
valueB*
dtype0

fcMatMulxw*
T0