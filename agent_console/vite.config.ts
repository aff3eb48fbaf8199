import vue from '@vitejs/plugin-vue'
import { fileURLToPath } from 'node:url'
import { defineConfig } from 'vitest/config'

// The engine that `npm run dev` talks to.
const engine = process.env['CONSOLE_ENGINE'] ?? 'http://127.0.0.1:8080'

const proxy = { '/api': { target: engine, ws: true, changeOrigin: false } }
const policy = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "connect-src 'self' ws: wss:",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ')

export default defineConfig({
  // The engine may serve it anywhere: every address is relative, and the routes stand behind the hash.
  base: './',
  plugins: [vue()],
  resolve: { alias: { '@': fileURLToPath(new URL('./src', import.meta.url)) } },
  define: {
    __VUE_OPTIONS_API__: true, // Element Plus needs it
    __VUE_PROD_DEVTOOLS__: false,
    __INTLIFY_PROD_DEVTOOLS__: false,
    __VUE_I18N_LEGACY_API__: false,
    __VUE_I18N_FULL_INSTALL__: false,
  },
  build: {
    // Offices run browsers six years old.
    target: 'chrome86',
    cssTarget: 'chrome86',
    manifest: true,
    // Inlined files would be data: addresses, which the content security policy does not let in.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 600,
    rolldownOptions: {
      output: {
        // The engine serves no file whose name begins with anything but a letter or a digit.
        chunkFileNames: (chunk) => `assets/${chunk.name.replace(/^[^A-Za-z0-9]+/, '')}-[hash].js`,
      },
    },
  },
  server: { proxy },
  // `npm run look` serves what was built, under the strictest policy it needs.
  preview: { proxy, headers: { 'Content-Security-Policy': policy } },
  test: { include: ['src/**/*.test.ts'], environment: 'happy-dom' },
})
