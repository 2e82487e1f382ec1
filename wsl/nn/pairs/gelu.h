/* GELU(z) = z Phi(z), with the distribution function Phi of the normal distribution, and its slope. */

INLINE vec chosen(ivec which, vec a, vec b) { return (vec)(((ivec)a & which) | ((ivec)b & ~which)); }

/* the smaller and the larger of two numbers; a, if it is not a number */
INLINE vec smaller(vec a, vec b) { return chosen(b < a, b, a); }
INLINE vec larger(vec a, vec b) { return chosen(b > a, b, a); }

/* Phi: libm's for double; for float 1/2 + z P(z^2) on |z| <= 5.6 with the P whose largest error is least (1.2e-8, by
   Lawson's iteration on 6,000 points), in a power series around the middle of z^2 */
INLINE vec normal_distribution(vec z)
{
#if IS_DOUBLE
    for (int lane = 0; lane < LANES; lane++)
        z[lane] = 0.5 * erfc(-0.70710678118654752440 * z[lane]);
    return z;
#else
    static const REAL P[] = {1.262595952e-01f,  -6.305129081e-02f, 4.698102921e-02f,  -3.834545985e-02f,
                             3.196729720e-02f,  -2.631233260e-02f, 2.095835470e-02f,  -1.575281844e-02f,
                             1.093558595e-02f,  -7.543612737e-03f, 5.404288415e-03f,  -2.863216214e-03f,
                             7.491292781e-04f,  -6.288650911e-04f, 8.586806362e-04f,  -3.306539729e-04f};
    z = larger(smaller(z, all(5.6f)), all(-5.6f));
    vec s = z * z * (2 / (5.6f * 5.6f)) - 1, sum = all(P[TERMS(P) - 1]);
    for (int k = TERMS(P) - 2; k >= 0; k--)
        sum = sum * s + P[k];
    return (REAL)0.5 + z * sum;
#endif
}

static void gelu(REAL *y, const REAL *z, int64_t count)
{
    for (int64_t i = 0; i < count; i += LANES) {
        vec v = load(z + i);
        store(y + i, v * normal_distribution(v));
    }
}

/* y: from the gradient of GELU(z) to that of z */
static void gelu_backward(REAL *y, const REAL *z, int64_t count)
{
    for (int64_t i = 0; i < count; i += LANES) {
        vec v = load(z + i), exponent = larger((REAL)-0.5 * v * v, all(LEAST));
        vec density = (REAL)0.39894228040143267794 * exponential(exponent);
        store(y + i, load(y + i) * (normal_distribution(v) + v * density));
    }
}
